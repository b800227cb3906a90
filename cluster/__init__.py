"""Where a job runs: hosts, ranks, ports, Ray, ownership of folders. Knows nothing of torch, models or audio."""
