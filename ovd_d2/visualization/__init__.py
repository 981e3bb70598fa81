"""Pictures of detections, training curves, tables and label files."""
