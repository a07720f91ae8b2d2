"""WebSSL-DINO (Fan, Tong et al., arXiv 2504.01017): DINOv2's architecture and objective, trained on two billion web images at 224 px.

In: any picture. Out: as `dinov2`. webssl-dino300m (ViT-L/14) at 224 px gives 256 x 1024; dino1b 1536, dino2b 2688, dino3b 3072, dino5b 3584 and
dino7b 4096 channels; the 378 and 518 px variants of dino7b have 729 and 1,369 tokens. The feed-forward is SwiGLU, and there are no registers.
WebSSL-MAE is another architecture and is refused.
"""

from __future__ import annotations

from encode.towers import DinoTower


class Webssl(DinoTower):
    """`weights`: a local folder or a hub id such as facebook/webssl-dino300m-full2b-224."""
