"""Object detection: networks, boxes and anchors, losses, detections, scenes to train on and their score."""
