"""CMD Executor's spelling of jobs, workers and files."""
