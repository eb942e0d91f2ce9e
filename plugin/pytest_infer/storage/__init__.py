"""Where results go: pytest-benchmark's rows and files, our block in them, the journal and the sidecar beside them."""
