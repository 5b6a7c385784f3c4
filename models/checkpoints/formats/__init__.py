"""Foreign formats, one file each: `matches(root)` tells the format by its names, `parse(root)` gives our tensors."""
