"""The guide's pictures: what `python docs/draw_pictures.py` draws, with numbers from minigrad."""
