"""Running a sweep: `scheduler` says which trial may start, `coordinator` starts them and stores the results."""
