"""The vision workers as their parent sees them: started, watched, replaced, remembered."""
