"""What the integration tests share: real processes, a link that can fail, a cloud that lies, reference numbers."""
