"""PSNR and SSIM are what their papers say, counted here by hand; LPIPS is thirteen convolutions and five weightings."""

import math

import numpy as np
import pytest

from encode.reconstruction import fidelity, sheet


def picture(seed, h=16, w=14):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_psnr_is_that_of_the_mean_squared_error():
    a = np.full((4, 4, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0, 0] = 148  # one of 48 values is 48 away: MSE 48
    assert fidelity.psnr(a, b) == pytest.approx(10 * math.log10(255 * 255 / 48))
    assert fidelity.psnr(a, a) == fidelity.BEST and fidelity.psnr(a * 0, a * 0 + 255) == pytest.approx(0)


def ssim_by_hand(a, b):
    """Wang et al. 2004, window by window, with no array trick."""
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    grey = lambda p: [[0.299 * r + 0.587 * g + 0.114 * b for r, g, b in row.tolist()] for row in p]
    x, y = grey(a), grey(b)
    found = []
    for top in range(len(x) - 10):
        for left in range(len(x[0]) - 10):
            cells = [(weights[i][j] / total, x[top + i][left + j], y[top + i][left + j]) for i in range(11) for j in range(11)]
            mx, my = sum(w * u for w, u, _ in cells), sum(w * v for w, _, v in cells)
            vx, vy = sum(w * (u - mx) ** 2 for w, u, _ in cells), sum(w * (v - my) ** 2 for w, _, v in cells)
            vxy = sum(w * (u - mx) * (v - my) for w, u, v in cells)
            c1, c2 = 6.5025, 58.5225
            found.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return sum(found) / len(found)


@pytest.mark.parametrize("noise", [3, 40])
def test_ssim_equals_the_reference_window_by_window(noise):
    a = picture(0)
    b = np.clip(a.astype(int) + np.random.default_rng(1).integers(-noise, noise + 1, a.shape), 0, 255).astype(np.uint8)
    assert fidelity.ssim(a, b) == pytest.approx(ssim_by_hand(a, b), abs=1e-12)


def test_ssim_is_one_for_equal_pictures_lower_for_worse_ones_and_undefined_below_a_window():
    a = picture(2)
    assert fidelity.ssim(a, a) == pytest.approx(1)
    near, far = (np.clip(a.astype(int) + k, 0, 255).astype(np.uint8) for k in (5, 60))
    assert 1 > fidelity.ssim(a, near) > fidelity.ssim(a, far) > fidelity.ssim(a, 255 - a)
    assert math.isnan(fidelity.ssim(a[:10], a[:10]))
    assert fidelity.summary(np.array([math.nan])) == {} and fidelity.summary(np.array([1.0, 3.0, math.nan]))["mean"] == 2


def test_a_sheet_has_each_picture_above_its_fellow():
    tops, below = [np.full((32, 32, 3), 10 * k, np.uint8) for k in range(5)], [np.full((32, 32, 3), 200 + k, np.uint8) for k in range(5)]
    shown = sheet.tiled([tops, below], columns=3)
    step = 96 + sheet.GAP
    for k in range(5):
        top, left = sheet.APART + k // 3 * (2 * step - sheet.GAP + sheet.APART) + 48, sheet.APART + k % 3 * step + 48
        assert shown[top, left, 0] == 10 * k and shown[top + step, left, 0] == 200 + k
    assert sheet.sized(np.zeros((600, 300, 3), np.uint8)).shape == (256, 128, 3)


# ---- LPIPS -----------------------------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
PLACES = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random VGG16 convolutions under torchvision's names and LPIPS weightings under its own."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("vgg")
    torch.manual_seed(0)
    convs, before = {}, 3
    for place, width in zip(PLACES, WIDTHS, strict=True):
        convs[f"features.{place}.weight"] = torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
        convs[f"features.{place}.bias"] = torch.randn(width) * 0.1
        before = width
    linear = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 128, 256, 512, 512))}
    save_file(convs, str(folder / "vgg.safetensors"))
    save_file(linear, str(folder / "lpips.safetensors"))
    return str(folder / "vgg.safetensors"), str(folder / "lpips.safetensors"), convs, linear


def lpips_by_hand(a, b, convs, linear):
    """The layer list of torchvision's VGG16, walked; taps after the last ReLU of each stage."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    taps = {}
    for name, x in (("a", a), ("b", b)):
        x, found = ((2 * x - 1) - shift) / scale, []
        for layer in range(30):
            if layer in PLACES:
                x = torch.nn.functional.conv2d(x, convs[f"features.{layer}.weight"], convs[f"features.{layer}.bias"], padding=1)
            elif layer in (4, 9, 16, 23):
                x = torch.nn.functional.max_pool2d(x, 2)
            else:
                x = torch.relu(x)
            if layer in (3, 8, 15, 22, 29):
                found.append(x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10))
        taps[name] = found
    parts = zip(taps["a"], taps["b"], linear.values(), strict=True)
    return sum(torch.nn.functional.conv2d((x - y) ** 2, w).mean(dim=(1, 2, 3)) for x, y, w in parts)


def test_lpips_equals_the_layers_walked_by_hand(weights):
    from encode.reconstruction import perceptual

    model = perceptual.load(*weights[:2])
    a, b = (torch.from_numpy(np.stack([picture(s, 32, 32) for s in seeds])).permute(0, 3, 1, 2) / 255 for seeds in ((0, 1), (2, 1)))
    found = model(a, b)
    assert torch.allclose(found, lpips_by_hand(a, b, *weights[2:]), rtol=1e-4)
    assert found[0] > 0.01 and found[1] == 0


def test_lpips_sends_gradients_to_the_reconstruction_alone(weights):
    from encode.reconstruction import perceptual

    model = perceptual.load(*weights[:2])
    a, b = (torch.rand(1, 3, 16, 16, requires_grad=True) for _ in range(2))
    model(a, b).sum().backward()
    assert a.grad is not None and a.grad.abs().sum() > 0 and b.grad is None and not any(p.requires_grad for p in model.parameters())


def test_perceptual_weights_that_are_not_whole_are_refused(weights, tmp_path):
    from safetensors.torch import save_file

    from encode.reconstruction import perceptual
    from pipelines.format.errors import InputError

    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, str(tmp_path / "half.safetensors"))
    (tmp_path / "x.safetensors").write_bytes(b"no such thing")
    with pytest.raises(InputError, match=r"features\.0\.bias is missing"):
        perceptual.load(str(tmp_path / "half.safetensors"), weights[1])
    with pytest.raises(InputError, match="not safetensors"):
        perceptual.load(weights[0], str(tmp_path / "x.safetensors"))
