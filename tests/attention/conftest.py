from hypothesis import settings

# A loaded machine must not fail a test, so examples have no deadline.
settings.register_profile("attention", deadline=None)
settings.load_profile("attention")
