"""Stage 3, making images: requests -> pictures. The only importer of diffusers; knows nothing of prompts or
selection.
"""
