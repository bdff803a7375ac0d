"""What `ray up` would meet: cluster.yaml read and filled in, AWS asked, findings, and what still bills."""
