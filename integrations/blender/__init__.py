"""Training data from Blender scenes: images with exact normals, depth, albedo, shading and masks."""
