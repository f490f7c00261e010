"""Stands in for PaddleClas in tests, which is in no package: where its training code asks for data,
calls the model, and looks at what it got, as in its repository at commit d178931 (October 2024).
"""
