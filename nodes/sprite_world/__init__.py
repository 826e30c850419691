"""The Sprite World's nodes: its model, its pictures, its measures."""
