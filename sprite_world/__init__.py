"""A small drawn world: pictures whose content is known exactly, a model trained on them, and measures of what it draws."""
