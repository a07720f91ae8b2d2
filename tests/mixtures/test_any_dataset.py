"""Any datasets, any budgets: the plan that comes out passes its own deep check, and loses and repeats nothing."""

import tempfile
from collections import Counter

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mixtures.check import check
from mixtures.plan import Plan, make_plan
from tests.mixtures.sets import dataset, mixture

few = st.integers(1, 12)
SIZES = {
    "text": st.lists(st.integers(0, 300), max_size=12),
    "image-text": st.lists(st.tuples(st.integers(1, 20), few, few), max_size=12),
    "video": st.lists(st.integers(1, 40), max_size=8),
    "action-video": st.lists(st.integers(1, 45), max_size=8),
    "vqa": st.lists(st.tuples(st.integers(1, 20), st.tuples(few, few), st.tuples(few, few)), max_size=12),
}
options = st.fixed_dictionaries(
    {"turns": st.sampled_from(["chained", "isolated"]), "history": st.sampled_from(["noised", "clean_copy"])}
    | {"loss": st.sampled_from(["role", "text", "all"]), "both": st.booleans(), "image_first": st.sampled_from([0, 0.5, 1])}
)


@settings(max_examples=10, deadline=None, phases=(Phase.reuse, Phase.generate))  # an example takes 0.2 s: too long to shrink
@given(st.fixed_dictionaries(SIZES), options, st.floats(0.2, 2.5), st.integers(0, 3), st.sampled_from([0.0, 0.3]))
def test_every_plan_passes_its_deep_check_and_uses_each_piece_as_often_as_its_passes_say(sizes, chosen, epochs, seed, fraction):
    with tempfile.TemporaryDirectory() as root:
        entries = {
            kind: {"dataset": dataset(f"{root}/{kind}", kind, of, kind), "epochs": epochs, "max_epochs": 3, **chosen} for kind, of in sizes.items()
        }
        path = make_plan(mixture(entries, f"{root}/plan", seed=seed, held_out={"fraction": fraction}))
        assert check(path, {"deep": True}) == []
        plan = Plan.open(path)
        rows = [plan.row(i) for i in range(plan.sequences())]
        whole = Counter({(s.source, s.epoch, s.shard, s.row): 0 for r in rows for s in r.spans})
        for r in rows:
            for s in r.spans:
                whole[s.source, s.epoch, s.shard, s.row] += s.payload
        # In all passes but the last, a record is used whole or not at all.
        for name, entry in plan.card["sources"].items():
            assert entry["tokens"]["all"] == sum(n for key, n in whole.items() if plan.sources[key[0]] == name)
            last = max((key[1] for key in whole if plan.sources[key[0]] == name), default=0)
            for (source, epoch, shard, row), n in whole.items():
                if plan.sources[source] == name and epoch < last and entry["data"] in ("text", "video"):
                    assert n == plan.datasets[entry["dataset"]].index(shard, ["text_tokens", "visual_tokens"]).take([row]).to_pylist()[0][
                        "text_tokens" if entry["data"] == "text" else "visual_tokens"
                    ]
