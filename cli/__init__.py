"""The `atelier` command, and a client of a running ComfyUI. Importing this package or `client` imports no torch."""
