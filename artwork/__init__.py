"""The pictures that the playground offers to newcomers: this program draws them, so they are free of others' rights.

    scenes: a function a picture ──▶ canvas: light, shapes and water in floats ──▶ JPEG beside the playground's page

``python -m artwork`` draws them anew. Nothing in them is left to chance.
"""
