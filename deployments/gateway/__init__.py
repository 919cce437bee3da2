"""HTTP in fal's dialect. It authenticates, parses, inserts and answers; it never holds a GPU."""
