function whatifPanel() { return { update() {} }; }
