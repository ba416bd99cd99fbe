"""Training data from Blender scenes: pictures with exact normals, depth, albedo, shading and masks."""
