"""The door of torch.compile: `backend="sparse"`."""
