"""What runs on a GPU whichever the model: picture in, sampler, video out."""
