"""Running a sweep: `board` says which trial may start, `coordinator` starts them and stores what comes of them."""
