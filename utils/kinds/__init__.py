"""The kinds of map: normals, depth, colour. One module each, with everything that is specific to it; see `base`."""
