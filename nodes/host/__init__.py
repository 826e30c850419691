"""What the rooms share: copies to train, memory, progress and words on a node, IMAGE and Pillow, folders, sampling."""
