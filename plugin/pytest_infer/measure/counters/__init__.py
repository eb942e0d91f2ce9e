"""What the kernel and the devices counted, read just before and just after a window."""
