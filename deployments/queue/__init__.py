"""What happens between HTTP and GPU: requests as rows, and the dispatcher that takes them to replicas."""
