"""The processes of a training: how they meet, who decides, and how a lost one is noticed."""
