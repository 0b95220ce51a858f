"""What the codecs do to real latents, and to the pictures: `python -m bench.codec` (docs/links.md).

| module | what it does |
| --- | --- |
| `tensors` | bytes, signal to noise and time of every codec on real latents |
| `pictures` | whole generations with every codec, against those with `raw` |
| `show` | tables and plot |
"""
