"""From a folder of images to a manifest: walk, headers, layout, duplicates, splits."""
