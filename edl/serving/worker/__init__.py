"""The process that computes, and how the server talks to it: control messages, shared memory."""
