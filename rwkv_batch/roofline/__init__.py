"""The prediction of a step's time: launches that the real code makes, a card's constants, and the sum over launches."""
