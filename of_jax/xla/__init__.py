"""What is written for the compiler: where a program runs, and reductions that it does well."""
