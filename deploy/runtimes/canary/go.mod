module redoubt.dev/redoubt/deploy/runtimes/canary

go 1.26.6
