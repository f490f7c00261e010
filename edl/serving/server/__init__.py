"""The teacher's port: connections, protocols, batches, and serving a function in this process."""
