"""From latents back to pixels: the network, its published layouts, what a fit of it learns from, and how near it comes."""
