"""Pure torch: networks, diffusion maths, checkpoint formats, perceptual networks. Knows no ComfyUI and no training."""
