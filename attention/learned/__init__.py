"""What is learned beside the model's weights: routers' centroids, attention strengths, and their tiles."""
