"""DINOv2 (Oquab et al., arXiv 2304.07193), with or without registers (Darcet et al., arXiv 2309.16588): self-supervised features.

In: any picture. Out: every patch's last hidden state, layer-normed without weight and bias (`towers.py`); the class token and the registers are
dropped. L/14 at 224 px gives 256 x 1024. The published weights were last trained at 518 px and are used at 224: positions are interpolated.

The published processor brings the short side to 256 and keeps the middle 224, which cuts a sixteenth off every edge even of a square picture; that
is the default, `view: processor`. RAE feeds the whole square at 224: `view: whole`, which generation wants, since what the tower does not see
cannot be drawn again.
"""

from __future__ import annotations

from encode.towers import DinoTower


class Dinov2(DinoTower):
    """`weights`: a local folder or a hub id such as facebook/dinov2-large or facebook/dinov2-with-registers-large."""
