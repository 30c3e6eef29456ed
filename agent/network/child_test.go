package network

const childRole = "REDOUBT_TEST_ROLE"

func child(string) int { return 1 }
