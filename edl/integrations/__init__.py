"""Where libraries that people train with take a teacher, or show what is going on: one module for
each, which is imported only by its users.
"""
