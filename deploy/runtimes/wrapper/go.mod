module redoubt.dev/redoubt/deploy/runtimes/wrapper

go 1.26.6
