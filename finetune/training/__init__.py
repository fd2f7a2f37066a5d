"""From split radiographs to a run folder."""
