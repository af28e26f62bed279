"""Running a sweep: `board` says which trial may start, `coordinator` starts them and stores the results."""
