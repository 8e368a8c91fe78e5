function tokensPanel() { return { update() {} }; }
