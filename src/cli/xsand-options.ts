/** The command line of `xsand`. */
import { Command, Option } from 'commander'
import { DEFAULT_CONFIG_PATH } from '../node/config.ts'
import { VERSION } from './program.ts'

export const xsandProgram = () =>
  new Command('xsand')
    .description('the daemon of a node')
    .version(VERSION)
    .addOption(new Option('--config <file>', 'configuration').default(DEFAULT_CONFIG_PATH))
    .exitOverride()
    .configureOutput({ writeErr: (text) => void (text.startsWith('error:') ? '' : process.stderr.write(text)) })
