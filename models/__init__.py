"""Pure torch: networks, diffusion maths, checkpoint formats, perceptual networks. Knows nothing of ComfyUI or training."""
