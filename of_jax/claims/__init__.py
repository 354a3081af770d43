"""Claims of studies: rules that are declared before the runs, verdicts, and their records."""
