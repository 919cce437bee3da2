"""The schema's history. Forward only, one file a step."""
