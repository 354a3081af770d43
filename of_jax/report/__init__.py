"""Pages, figures and tables of runs and studies, made from what is on disk alone."""
