import { loadConfig } from '../node/config.ts'
import { command } from './program.ts'

export const configValidate = command({
  usage: 'validate <file>',
  description: 'check a configuration file and its overrides, without a node',
  async run({ args }) {
    const file = args[0]!
    const { config } = loadConfig(file)
    return { data: { file, valid: true, config }, table: () => `${file} is valid` }
  },
})
